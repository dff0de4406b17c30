"""What speaks HTTP and gRPC: KServe's servers and data plane, with the checks in front of them."""
