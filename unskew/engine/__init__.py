"""Trainers and what a run needs: the loop, the evaluator, checkpoints and run folders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "accelerator": ["collect_env_info"],
        "clip_trainer": ["CLIPTrainer"],
        "loop": ["TrainerBase"],
        "meters": ["AverageMeter", "MetricMeter"],
        "prediction": ["Prediction"],
        "prompt_trainer": ["PromptTrainer"],
        "trainer": ["TRAINER_REGISTRY", "SimpleTrainer", "TrainerX", "build_trainer", "set_random_seed"],
    },
)
