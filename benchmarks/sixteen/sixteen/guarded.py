"""A module that does something only when it is started itself."""

STARTED = []

if __name__ == "__main__":
    STARTED.append(True)
