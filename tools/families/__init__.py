"""Every model class that ComfyUI knows, built small and inverted: what works, and how the rest is refused."""
