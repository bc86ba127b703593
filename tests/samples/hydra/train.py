"""Trains a small model whose settings stand in conf/."""

import csv
import json
import logging
from pathlib import Path

import hydra
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf
from src.models import Line

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    log.info(OmegaConf.to_yaml(cfg))
    with open(Path(to_absolute_path(cfg.data.dir)) / cfg.data.file) as stream:
        rows = [(float(r["x"]), float(r["y"])) for r in csv.DictReader(stream)]
    model = Line(cfg.model.slope)
    for epoch in range(cfg.trainer.max_epochs):
        loss = model.step(rows, cfg.model.lr)
        log.info("epoch %d: loss %.4f", epoch, loss)
    out = Path(cfg.paths.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "model.json", "w") as stream:
        json.dump({"slope": model.slope, "epochs": cfg.trainer.max_epochs}, stream)


if __name__ == "__main__":
    main()
