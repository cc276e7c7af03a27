"""The default values of all config keys: Dassl's tree with ours in it."""

import functools

from yacs.config import CfgNode

from unskew.config._keys import copied

# What the few-shot and long-tailed trainers of CLIP's field share, where Dassl's defaults are for
# domain adaptation: CoOp's schedule, augmentation and test batch.
COMMON = {
    "INPUT": {"INTERPOLATION": "bicubic", "TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"]},
    "DATASET": {"ROOT": "data"},
    "DATALOADER": {"TEST": {"BATCH_SIZE": 100}},
    "OPTIM": {
        "NAME": "sgd",
        "LR": 0.002,
        "LR_SCHEDULER": "cosine",
        "MAX_EPOCH": 50,
        "WARMUP_EPOCH": 1,
        "WARMUP_TYPE": "constant",
    },
}


def _node(**values) -> CfgNode:
    return CfgNode(values)


def get_cfg_default() -> CfgNode:
    """The default tree: every key of Dassl with its default, and ours; no trainer's own node yet."""
    return copied(_default_tree())


@functools.cache
def _default_tree() -> CfgNode:
    loader = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
    return _node(
        VERSION=1,
        OUTPUT_DIR="./output",
        RESUME="",
        SEED=1,
        USE_CUDA=True,
        VERBOSE=True,
        INPUT=_node(
            SIZE=(224, 224),
            INTERPOLATION="bilinear",
            TRANSFORMS=(),
            NO_TRANSFORM=False,
            PIXEL_MEAN=[0.485, 0.456, 0.406],
            PIXEL_STD=[0.229, 0.224, 0.225],
            CROP_PADDING=4,
            RRCROP_SCALE=(0.08, 1.0),
            CUTOUT_N=1,
            CUTOUT_LEN=16,
            GN_MEAN=0.0,
            GN_STD=0.15,
            RANDAUGMENT_N=2,
            RANDAUGMENT_M=10,
            COLORJITTER_B=0.4,
            COLORJITTER_C=0.4,
            COLORJITTER_S=0.4,
            COLORJITTER_H=0.1,
            RGS_P=0.2,
            GB_P=0.5,
            GB_K=21,
            VIEWS=4,  # augmented views per training image that are encoded once; 0 encodes at every step
        ),
        DATASET=_node(
            ROOT="",
            NAME="",
            SOURCE_DOMAINS=(),
            TARGET_DOMAINS=(),
            NUM_LABELED=-1,
            LONGTAIL=False,  # a long-tailed set: runs on all its training images are called lt, for their tables
            NUM_SHOTS=-1,  # -1: all training images
            NUM_VAL_SHOTS=-1,  # -1: min(NUM_SHOTS, 4), as CoOp draws
            SEED=-1,  # of the few-shot sample; -1: SEED
            TRAIN_ON_VAL=False,  # add the val images to train, for methods that use no val; val is then empty
            HOLDOUT=0.0,  # part of a class's training images that serves as val, in runs on all images without one
            IMBALANCE=100,  # of cifar100_lt: images of the most to those of the least frequent class
            TEMPLATE="",  # the prompt of a class, "a photo of a {}."; empty: the dataset's own
            CLASSNAMES="",  # of folder and csv: a file that names the classes; empty: their folders' names
            UPRIGHT=False,  # apply the EXIF orientation, put transparent images on white; True in folder and csv
            UNREADABLE="error",  # of folder and csv: error or skip, for images that cannot be read
            SUBSAMPLE_CLASSES="all",  # all, base or new
            VAL_PERCENT=0.1,
            STL10_FOLD=-1,
            CIFAR_C_TYPE="",
            CIFAR_C_LEVEL=1,
            ALL_AS_UNLABELED=False,
        ),
        DATALOADER=_node(
            NUM_WORKERS=4,
            K_TRANSFORMS=1,
            RETURN_IMG0=False,
            TRAIN_X=CfgNode(dict(loader)),
            TRAIN_U=CfgNode({**loader, "SAME_AS_X": True}),
            TEST=_node(SAMPLER="SequentialSampler", BATCH_SIZE=32),
        ),
        MODEL=_node(
            INIT_WEIGHTS="",
            BACKBONE=_node(NAME="", PRETRAINED=True),
            HEAD=_node(NAME="", HIDDEN_LAYERS=(), ACTIVATION="relu", BN=True, DROPOUT=0.0),
        ),
        OPTIM=_node(
            NAME="adam",
            LR=0.0003,
            WEIGHT_DECAY=5e-4,
            MOMENTUM=0.9,
            SGD_DAMPNING=0,
            SGD_NESTEROV=False,
            RMSPROP_ALPHA=0.99,
            ADAM_BETA1=0.9,
            ADAM_BETA2=0.999,
            STAGED_LR=False,
            NEW_LAYERS=(),
            BASE_LR_MULT=0.1,
            LR_SCHEDULER="single_step",
            STEPSIZE=(-1,),
            GAMMA=0.1,
            MAX_EPOCH=10,
            WARMUP_EPOCH=-1,
            WARMUP_TYPE="linear",
            WARMUP_CONS_LR=1e-5,
            WARMUP_MIN_LR=1e-5,
            WARMUP_RECOUNT=True,
        ),
        TRAIN=_node(
            CHECKPOINT_FREQ=0,  # epochs between checkpoints; without it, a long run saves one every few minutes
            KEEP=1,  # last checkpoints that stay, beside the best; -1: all of CHECKPOINT_FREQ
            PRINT_FREQ=10,
            COUNT_ITER="train_x",
            ACCUMULATE=1,  # batches whose gradients are averaged before each step
        ),
        TEST=_node(
            EVALUATOR="Classification",
            PER_CLASS_RESULT=False,
            COMPUTE_CMAT=False,
            NO_TEST=False,
            SPLIT="test",
            FINAL_MODEL="last_step",
            CROPS=1,  # logits are averaged over so many crops of an image: 1, 5 or 10
            MODEL_DIR="",  # the trained run of an evaluation; --eval-only sets this key and the next one
            EPOCH=-1,  # the epoch of that run; -1: the best, else the last
            PARTS_DTYPE="float32",  # of the logits in predictions.safetensors except the prediction, or float16
        ),
        TRAINER=_node(
            NAME="",
            CLASS="",  # the registered class, where a config lends it a name of its own; empty: NAME
            PREC="fp32",  # fp32, fp16, bf16 or amp
        ),
    )
