"""U-Net segmentation of salt in seismic images (TGS Salt Identification Challenge).

main         the whole pipeline: `run`
config       settings, recipes and experiments
data         reads and checks the competition's files; split and loaders
synthetic    writes a small synthetic competition
transforms   resizing and augmentation
weights      reads pretrained weights of the encoder
model        the U-Net
losses       BCE-Dice and Lovász losses
muon         the optimizer of the recipe `best`
device       device, dtype, distributed processes
experiments  trains or reuses each experiment and selects the best
train        one experiment: epochs, best weights, when checkpoints are saved
checkpoint   writes and reads checkpoints
launch       one experiment in processes of its own
budget       the time limit of a run
metrics      IoU, the competition's score, post-processing
predict      probabilities from trained networks
evaluate     the score of the best networks on the validation images
submission   run-length encoding and submission.csv
plots        the plots
report       the tables and the HTML report
outputs      the output folder: file names, atomic writes, event lines
"""

__version__ = "0.1.0"
