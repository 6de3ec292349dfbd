#!/usr/bin/env bash
# Makes worker_pb2*.py from worker.proto. Run it from anywhere after editing the .proto; commit what it writes.
# Needs grpcio-tools==1.73.1, in an environment of its own: it writes code that protobuf 6 and 7 both accept, while
# newer ones write code that needs the newest.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. jupyter_dsserve/protocol/worker.proto
