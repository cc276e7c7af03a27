"""The script's own CLIP, a very small one: where its weights are, its model, its tokeniser."""

import os

import torch
from torch import nn

_MODELS = {"Tiny": "https://example.com/tiny.pt"}
LENGTH, VOCABULARY, WIDTH = 24, 128, 16


def _download(url, root=None):
    return os.path.join(root or os.environ["TINYCLIP"], os.path.basename(url))


def tokenize(text):
    codes = [1, *(ord(letter) % 100 + 2 for letter in text[: LENGTH - 2]), VOCABULARY - 1]
    return torch.tensor([codes + [0] * (LENGTH - len(codes))])


class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, WIDTH, bias=False))
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.transformer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.1)
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    @property
    def dtype(self):
        return self.text_projection.dtype


def build_model(state_dict):
    model = CLIP()
    model.load_state_dict(state_dict)
    return model.eval()
