"""The gateway's gRPC front, on a port of its own. docs/grpc.md says what is served."""
