"""Line continuations."""

VALUE = 1 + \
    2

if VALUE: \
    DONE = "yes"
