#!/usr/bin/env bash
# Makes *_pb2*.py from the .proto files. Run it from anywhere after editing one; commit what it writes.
# Needs grpcio-tools==1.73.1, in an environment of its own: it writes code that protobuf 6 and 7 both accept, while
# newer ones write code that needs the newest.
set -euo pipefail
cd "$(dirname "$0")/../.."
of=jupyter_dsserve/protocol
python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $of/*.proto
# The package `inference` is Triton's, and a process has one message of a name, but in pools of their own: so that
# tritonclient can be imported beside ours.
sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $of/open_inference_pb2.py
