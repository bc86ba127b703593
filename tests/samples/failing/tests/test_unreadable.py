import humble

assert humble.nothing
