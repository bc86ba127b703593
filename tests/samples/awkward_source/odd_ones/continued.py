"""Lines that go on."""

VALUE = 1 + \
    2

if VALUE: \
    DONE = "yes"
