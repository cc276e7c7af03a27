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
    return _node(
        VERSION=1,  # of the config format
        OUTPUT_DIR="./output",  # the folder of the run; the commands set it from the names of the run
        RESUME="",  # folder of checkpoints to continue from; empty: OUTPUT_DIR
        SEED=1,  # of the few-shot sample and of all random numbers; negative: unseeded
        USE_CUDA=True,  # use a GPU if there is one
        VERBOSE=True,  # print the lines that Dassl prints; for its scripts
        INPUT=_node(
            SIZE=(224, 224),  # height and width of an image; the image towers of CLIP have their own
            INTERPOLATION="bilinear",  # of resizing: bilinear, bicubic or nearest
            TRANSFORMS=(),  # of training images, such as random_resized_crop, random_flip, normalize
            NO_TRANSFORM=False,  # no transform at all; for scripts of Dassl
            PIXEL_MEAN=[0.485, 0.456, 0.406],  # of normalize; the image towers of CLIP have their own
            PIXEL_STD=[0.229, 0.224, 0.225],  # of normalize; the image towers of CLIP have their own
            CROP_PADDING=4,  # pixels around the image, of random_crop
            RRCROP_SCALE=(0.08, 1.0),  # smallest and largest part of the image, of random_resized_crop
            CUTOUT_N=1,  # number of holes, of cutout
            CUTOUT_LEN=16,  # side of a hole in pixels, of cutout
            GN_MEAN=0.0,  # mean of the noise, of gaussian_noise
            GN_STD=0.15,  # standard deviation of the noise, of gaussian_noise
            RANDAUGMENT_N=2,  # number of operations, of randaugment
            RANDAUGMENT_M=10,  # strength of the operations, of randaugment
            COLORJITTER_B=0.4,  # largest change of brightness, of colorjitter
            COLORJITTER_C=0.4,  # largest change of contrast, of colorjitter
            COLORJITTER_S=0.4,  # largest change of saturation, of colorjitter
            COLORJITTER_H=0.1,  # largest change of hue, of colorjitter
            RGS_P=0.2,  # probability, of randomgrayscale
            GB_P=0.5,  # probability, of gaussian_blur
            GB_K=21,  # size of the kernel in pixels, of gaussian_blur
            VIEWS=4,  # augmented views per training image that are encoded once; 0 encodes at every step
        ),
        DATASET=_node(
            ROOT="",  # folder of the datasets (--root)
            NAME="",  # a name from configs/datasets (--dataset)
            SOURCE_DOMAINS=(),  # domains to train on; for Dassl's datasets with several domains
            TARGET_DOMAINS=(),  # domains to test on; for Dassl's datasets with several domains
            NUM_LABELED=-1,  # number of labelled training images; for Dassl's semi-supervised datasets
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
            VAL_PERCENT=0.1,  # part of the training images that is val; for Dassl's datasets
            STL10_FOLD=-1,  # published fold, 0 to 4; for Dassl's STL10
            CIFAR_C_TYPE="",  # the corruption; for Dassl's CIFAR-C
            CIFAR_C_LEVEL=1,  # severity of the corruption, 1 to 5; for Dassl's CIFAR-C
            ALL_AS_UNLABELED=False,  # use the labelled images as unlabelled ones too; for Dassl's datasets
        ),
        DATALOADER=_node(
            NUM_WORKERS=4,  # processes that decode images; 0: the main process
            K_TRANSFORMS=1,  # augmented versions of an image in a batch; for Dassl's trainers
            RETURN_IMG0=False,  # add the image without augmentation to a batch; for Dassl's trainers
            TRAIN_X=_node(
                SAMPLER="RandomSampler",  # order of the training images; Dassl's trainers have others
                BATCH_SIZE=32,  # images of a step
                N_DOMAIN=0,  # domains in a batch, of RandomDomainSampler; 0: all
                N_INS=16,  # images per class in a batch, of RandomClassSampler
            ),
            TRAIN_U=_node(
                SAMPLER="RandomSampler",  # as TRAIN_X, for the unlabelled images of Dassl's trainers
                BATCH_SIZE=32,  # as TRAIN_X
                N_DOMAIN=0,  # as TRAIN_X
                N_INS=16,  # as TRAIN_X
                SAME_AS_X=True,  # use the keys of TRAIN_X instead of these
            ),
            TEST=_node(
                SAMPLER="SequentialSampler",  # order of the test images
                BATCH_SIZE=32,  # test images at a time
            ),
        ),
        MODEL=_node(
            INIT_WEIGHTS="",  # a checkpoint to start from; for scripts of Dassl
            BACKBONE=_node(
                NAME="",  # a name from configs/backbones, or another one of open_clip (--backbone)
                PRETRAINED=True,  # load pre-trained weights; for backbones of Dassl
            ),
            HEAD=_node(
                NAME="",  # the layers on top of the backbone; for scripts of Dassl
                HIDDEN_LAYERS=(),  # widths of the hidden layers
                ACTIVATION="relu",  # of the hidden layers
                BN=True,  # batch norm in the hidden layers
                DROPOUT=0.0,  # in the hidden layers
            ),
        ),
        OPTIM=_node(
            NAME="adam",  # adam, amsgrad, sgd, rmsprop, radam or adamw
            LR=0.0003,  # learning rate after the warm-up
            WEIGHT_DECAY=5e-4,  # L2 penalty; decoupled in adamw
            MOMENTUM=0.9,  # of sgd and rmsprop
            SGD_DAMPNING=0,  # dampening of the momentum, of sgd
            SGD_NESTEROV=False,  # Nesterov's momentum, of sgd
            RMSPROP_ALPHA=0.99,  # decay of the running mean, of rmsprop
            ADAM_BETA1=0.9,  # decay of the first moment, of adam, amsgrad, radam and adamw
            ADAM_BETA2=0.999,  # decay of the second moment, of the same
            STAGED_LR=False,  # other learning rates for the layers that NEW_LAYERS does not name; for scripts of Dassl
            NEW_LAYERS=(),  # names of the layers that learn at LR, with STAGED_LR
            BASE_LR_MULT=0.1,  # factor of LR for all other layers, with STAGED_LR
            LR_SCHEDULER="single_step",  # single_step, multi_step or cosine
            STEPSIZE=(-1,),  # epochs between steps of single_step (-1: MAX_EPOCH); the steps of multi_step
            GAMMA=0.1,  # factor of the learning rate at a step
            MAX_EPOCH=10,  # number of epochs
            WARMUP_EPOCH=-1,  # epochs of the warm-up; 0 or less: none
            WARMUP_TYPE="linear",  # constant at WARMUP_CONS_LR, or linear from WARMUP_MIN_LR
            WARMUP_CONS_LR=1e-5,  # learning rate of the constant warm-up
            WARMUP_MIN_LR=1e-5,  # learning rate of the first epoch of the linear warm-up
            WARMUP_RECOUNT=True,  # count the epochs of the schedule from the end of the warm-up
        ),
        TRAIN=_node(
            CHECKPOINT_FREQ=0,  # epochs between checkpoints; without it, a long run saves one every few minutes
            KEEP=1,  # last checkpoints that stay, beside the best; -1: all of CHECKPOINT_FREQ
            PRINT_FREQ=10,  # batches between two lines of the log
            COUNT_ITER="train_x",  # batches of an epoch: those of train_x, train_u or smaller_one; for Dassl's trainers
            ACCUMULATE=1,  # batches whose gradients are averaged before each step
        ),
        TEST=_node(
            EVALUATOR="Classification",  # a registered evaluator; for scripts of Dassl
            PER_CLASS_RESULT=False,  # log the accuracy of each class
            COMPUTE_CMAT=False,  # save the confusion matrix
            NO_TEST=False,  # do not test after training
            SPLIT="test",  # the images to test on: test or val
            FINAL_MODEL="last_step",  # the model to test: last_step, or best_val, the best epoch on val
            CROPS=1,  # logits are averaged over so many crops of an image: 1, 5 or 10
            MODEL_DIR="",  # the trained run of an evaluation; --eval-only sets this key and the next one
            EPOCH=-1,  # the epoch of that run; -1: the best, else the last
            PARTS_DTYPE="float32",  # of the logits in predictions.safetensors except the prediction, or float16
        ),
        TRAINER=_node(
            NAME="",  # a name from configs/trainers (--trainer)
            CLASS="",  # the registered class, where a config lends it a name of its own; empty: NAME
            PREC="fp32",  # fp32, fp16, bf16 or amp
        ),
    )
