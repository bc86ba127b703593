class Line:
    def __init__(self, slope):
        self.slope = slope

    def step(self, rows, lr):
        gradient = sum(2 * (self.slope * x - y) * x for x, y in rows) / len(rows)
        self.slope -= lr * gradient
        return sum((self.slope * x - y) ** 2 for x, y in rows) / len(rows)
