"""The Kubeflow side of every step: one typed function each, whose body only calls the library."""
