"""The messages of the Open Inference Protocol over gRPC; the other modules need the extra `grpc`."""
