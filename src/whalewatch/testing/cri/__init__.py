"""A fake engine that speaks Kubernetes' CRI."""
