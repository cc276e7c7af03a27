"""Zero-shot CLIP: the dataset's prompts, without training (Radford et al. 2021, arXiv 2103.00020)."""

from collections.abc import Sequence

from torch import Tensor

from unskew.data.dataset import Datum
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPTrainer):
    """Logits = exp(logit_scale) * cosine with the mean text feature of the dataset's templates."""

    logit_adjusted = True  # the model was not trained on the training images

    def labelled_items(self) -> Sequence[Datum]:
        return []

    def build_model(self) -> None:
        """Build nothing: no weights are trained."""

    def train(self) -> None:
        self.before_train()
        self.after_train()

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, self.zeroshot_weights)

    def linear_head(self) -> tuple[Tensor, Tensor]:
        return self.cosine_head(self.zeroshot_weights)
