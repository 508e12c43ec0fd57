"""What only a large model or a cluster needs: model judges, hub, costs, vLLM, Ray, lmms-eval."""
