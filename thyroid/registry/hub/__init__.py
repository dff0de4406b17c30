"""The registry's versions, entered in Kubeflow Hub (formerly Kubeflow Model Registry) as well."""
