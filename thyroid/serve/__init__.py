"""The KServe endpoint: registered models behind V1 and V2 (REST and gRPC), with explanations, limits and metrics."""
