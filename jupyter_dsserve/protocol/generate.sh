#!/usr/bin/env bash
# Makes *_pb2*.py from the .proto files. Run it from anywhere after editing one; commit what it writes.
# Needs grpcio-tools==1.73.1, in an environment of its own: it writes code that protobuf 6 and 7 both accept, while
# newer ones write code that needs the newest.
set -euo pipefail
cd "$(dirname "$0")/../.."
of=jupyter_dsserve/protocol
python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $of/*.proto
