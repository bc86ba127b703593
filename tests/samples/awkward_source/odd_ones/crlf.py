"""Line ends of another system."""

TEXT = """one
two"""
