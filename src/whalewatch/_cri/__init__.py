"""The Kubernetes CRI, as far as watching needs it: calls, what the answers mean, and three ways to hear of changes."""
