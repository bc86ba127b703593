"""Also a program: python -m caller.work."""


def run(words: list[str]) -> str:
    return "+".join(words)


if __name__ == "__main__":
    print(run(["work", __package__]))
