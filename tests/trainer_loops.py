"""Independent float64 loops of Dassl's trainers, written from the papers, for `toy_domains`.

Each loop computes the losses from the weights and the batch, and the weights after a step of plain SGD at ``RATE``.
"""

import math

import torch
from toy_domains import CLASSES

RATE = 0.1


class Loop:
    """Weights by part, and the functions of them that the loops share."""

    def __init__(self, trainer):
        parts = {name: part.state_dict() for name, part in trainer._models.items()}
        self.parts = {name: {key: self.leaf(value) for key, value in part.items()} for name, part in parts.items()}
        self.node = trainer.node if trainer.cfg.TRAINER.get(trainer.cfg.TRAINER.NAME.upper()) else None

    @staticmethod
    def leaf(value):
        return value.detach().clone().requires_grad_(value.is_floating_point())

    def features(self, x, part="F"):
        p = self.parts[part]
        return torch.tanh(x.reshape(len(x), -1) @ p["backbone.layer.weight"].T + p["backbone.layer.bias"])

    def linear(self, x, part, name=""):
        p = self.parts[part]
        return x @ p[f"{name}weight"].T + p[f"{name}bias"]

    def logits(self, x, part="model"):
        return self.linear(self.features(x, part), part, "classifier.")

    def critic(self, x):
        """Two layers with batch norm and a leaky ReLU, then a linear one."""
        p = self.parts["critic"]
        for layer in (0, 3):
            x = self.linear(x, "critic", f"0.mlp.{layer}.")
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
            x = x * p[f"0.mlp.{layer + 1}.weight"] + p[f"0.mlp.{layer + 1}.bias"]
            x = torch.where(x > 0, x, 0.01 * x)
        return self.linear(x, "critic", "1.")[:, 0]

    def prototypes(self, f):
        return f / f.square().sum(1, keepdim=True).sqrt() @ self.parts["C"]["prototypes.weight"].T / 0.05

    def step(self, gradients):
        """Subtract ``RATE`` times the gradient of each part's loss: ``{(part, ...): loss}``."""
        found = []
        for names, loss in gradients.items():
            for part in names:
                leaves = [(key, w) for key, w in self.parts[part].items() if w.requires_grad]
                grads = torch.autograd.grad(loss, [w for _, w in leaves], retain_graph=True, allow_unused=True)
                found += [(part, key, w, g) for (key, w), g in zip(leaves, grads, strict=True) if g is not None]
        for part, key, weight, gradient in found:
            self.parts[part][key] = self.leaf(weight - RATE * gradient)


def probabilities(z):
    e = (z - z.max(1, keepdim=True).values).exp()
    return e / e.sum(1, keepdim=True)


def ce_rows(z, y):
    return torch.logsumexp(z, 1) - z[torch.arange(len(y)), y]


def ce(z, y):
    return ce_rows(z, y).mean()


def log_loss(p, target):
    """Dassl's cross-entropy of probabilities, whose logarithm has a margin of 1e-5."""
    return -(target * (p + 1e-5).log()).sum(1).mean()


def onehot(y):
    return torch.eye(CLASSES, dtype=torch.float64)[y]


def accuracy(z, y):
    return 100 * (z.argmax(1) == y).double().mean()


def is_source(z):
    return (1 + (-z).exp()).log().mean()


def is_target(z):
    return (1 + z.exp()).log().mean()


def supervised(t, x, u):
    z = t.logits(x["img"])
    t.step({("model",): ce(z, x["label"])})
    return {"loss": ce(z, x["label"]), "acc": accuracy(z, x["label"])}


def crossgrad(t, x, _):
    image, y, d, node = x["img"].clone().requires_grad_(), x["label"], x["domain"], t.node
    (grad_d,) = torch.autograd.grad(ce(t.logits(image, "D"), d), image)
    (grad_f,) = torch.autograd.grad(ce(t.logits(image, "F"), y), image)
    image = image.detach()
    to_d = image + node.EPS_F * grad_d.clip(-0.1, 0.1)
    to_f = image + node.EPS_D * grad_f.clip(-0.1, 0.1)
    loss_f = 0.7 * ce(t.logits(image, "F"), y) + 0.3 * ce(t.logits(to_d, "F"), y)
    loss_d = 0.4 * ce(t.logits(image, "D"), d) + 0.6 * ce(t.logits(to_f, "D"), d)
    t.step({("F",): loss_f, ("D",): loss_d})
    return {"loss_f": loss_f, "loss_d": loss_d}


def ddaig(t, x, _):
    def moved():
        g = t.parts["G"]
        return (x["img"] + 0.4 * torch.tanh(g["a"] * x["img"] + g["b"])).clip(-0.9, 0.9)

    y, d = x["label"], x["domain"]
    loss_g = ce(t.logits(moved(), "F"), y) - ce(t.logits(moved(), "D"), d)
    t.step({("G",): loss_g})
    other = moved().detach()
    loss_f = 0.75 * ce(t.logits(x["img"], "F"), y) + 0.25 * ce(t.logits(other, "F"), y)
    loss_d = ce(t.logits(x["img"], "D"), d)
    t.step({("F",): loss_f, ("D",): loss_d})
    return {"loss_g": loss_g, "loss_f": loss_f, "loss_d": loss_d}


def expert(t, k, f):
    return probabilities(t.linear(f, "E", f"linears.{k}."))


def dael_source(t, x):
    loss_x = loss_cr = acc = 0
    for k in range(3):
        rows = x["domain"] == k
        y, own = x["label"][rows], expert(t, k, t.features(x["img"][rows]))
        strong = t.features(x["img2"][rows])
        others = sum(expert(t, j, strong) for j in range(3) if j != k) / 2
        loss_x += log_loss(own, onehot(y)) / 3
        loss_cr += ((others - own.detach()) ** 2).sum(1).mean() / 3
        acc += accuracy(own, y) / 3
    return loss_x, acc, loss_cr


def daeldg(t, x, _):
    loss_x, acc, loss_cr = dael_source(t, x)
    t.step({("F", "E"): loss_x + loss_cr})
    return {"loss_x": loss_x, "acc": acc, "loss_cr": loss_cr}


def dael(t, x, u):
    loss_x, acc, loss_cr = dael_source(t, x)
    losses = []
    weak, strong = t.features(u["img"]), t.features(u["img2"])
    for row in range(len(weak)):
        guesses = torch.stack([expert(t, k, weak[row : row + 1])[0] for k in range(3)])
        best = int(guesses.max(1).values.argmax())
        mean = sum(expert(t, k, strong[row : row + 1]) for k in range(3)) / 3
        kept = float(guesses[best].max() >= t.node.CONF_THRE)
        losses.append(kept * log_loss(mean, onehot(guesses[best].argmax())[None]))
    loss_u = sum(losses) / len(losses)
    assert 0 < sum(loss != 0 for loss in losses) < len(losses)
    t.step({("F", "E"): loss_x + loss_cr + 0.5 * loss_u})
    return {"loss_x": loss_x, "acc_x": acc, "loss_cr": loss_cr, "loss_u": loss_u}


def mixmatch(t, x, u):
    image, y, views = x["img"][0], onehot(x["label"]), u["img"]
    guess = sum(probabilities(t.logits(view)) for view in views).detach() / 2
    guess = guess**2 / (guess**2).sum(1, keepdim=True)
    images = torch.cat([image, *views])
    labels = torch.cat([y, guess, guess])
    order = torch.randperm(len(images))
    shares = [torch.distributions.Beta(0.75, 0.75).sample((n,)) for n in (len(y), 2 * len(guess))]
    share = torch.cat(shares).double()
    share = torch.maximum(share, 1 - share)
    labels = share[:, None] * labels + (1 - share[:, None]) * labels[order]
    share = share[:, None, None, None]
    p = probabilities(t.logits(share * images + (1 - share) * images[order]))
    loss_x = log_loss(p[: len(y)], labels[: len(y)])
    loss_u = ((labels - p)[len(y) :] ** 2).sum() / (2 * len(guess) * CLASSES)
    t.step({("model",): loss_x + 100 * 7 / 100 * loss_u})  # batch 8 of a ramp-up over 100
    return {"loss_x": loss_x, "loss_u": loss_u}


def fixmatch(t, x, u):
    weak, strong = (torch.cat([x[name], u[name]]) for name in ("img", "img2"))
    confidence, guess = probabilities(t.logits(weak)).detach().max(1)
    mask = (confidence >= t.node.CONF_THRE).double()
    assert 0 < mask.mean() < 1
    z = t.logits(x["img"])
    loss_x, loss_u = ce(z, x["label"]), (mask * ce_rows(t.logits(strong), guess)).mean()
    t.step({("model",): loss_x + loss_u})
    n = len(z)
    right = (guess[n:] == u["label"]).double()
    kept = (right * mask[n:]).sum() / (mask[n:].sum() + 1e-5)
    quality = {"y_u_pred_acc_raw": right.mean(), "y_u_pred_acc_thre": kept, "y_u_pred_keep": mask[n:].mean()}
    return {"loss_x": loss_x, "acc_x": accuracy(z, x["label"]), "loss_u": loss_u, **quality}


def entmin(t, x, u):
    z, p = t.logits(x["img"]), probabilities(t.logits(u["img"]))
    loss_x, loss_u = ce(z, x["label"]), log_loss(p, p)
    t.step({("model",): loss_x + 0.5 * loss_u})
    return {"loss_x": loss_x, "acc_x": accuracy(z, x["label"]), "loss_u": loss_u}


def dann(t, x, u):
    weight = 2 / (1 + math.exp(-10 * 7 / 15)) - 1  # batch 8 of 15
    z = t.logits(x["img"])
    loss_x = ce(z, x["label"])
    features = t.features(x["img"], "model"), t.features(u["img"], "model")
    loss_d = is_source(t.critic(features[0])) + is_target(t.critic(features[1]))
    t.step({("model",): loss_x - weight * loss_d, ("critic",): loss_d})
    return {"loss_x": loss_x, "acc_x": accuracy(z, x["label"]), "loss_d": loss_d}


def adda(t, x, u):
    source = t.features(x["img"], "model").detach()  # the first step: both networks are equal
    target = t.features(u["img"], "model")
    loss_critic = is_source(t.critic(source)) + is_target(t.critic(target.detach()))
    t.step({("critic",): loss_critic})
    loss_model = is_source(t.critic(target))
    t.step({("model",): loss_model})
    return {"loss_critic": loss_critic, "loss_model": loss_model}


def disagreement(first, second):
    return (probabilities(first) - probabilities(second)).abs().mean()


def mcd(t, x, u):
    def source():
        return sum(ce(t.linear(t.features(x["img"]), name), x["label"]) for name in ("C1", "C2"))

    def target():
        return disagreement(*(t.linear(t.features(u["img"]), name) for name in ("C1", "C2")))

    losses = [source()]
    t.step({("F", "C1", "C2"): losses[0]})
    losses.append(source() - target())
    t.step({("C1", "C2"): losses[1]})
    for _ in range(2):
        losses.append(target())
        t.step({("F",): losses[-1]})
    return dict(zip(("loss_step_A", "loss_step_B", "loss_step_C"), (losses[0], losses[1], losses[-1]), strict=True))


def m3sda(t, x, u):
    rows = [x["domain"] == k for k in range(3)]

    def source():
        parts = [(t.features(x["img"][rows[k]]), x["label"][rows[k]], k) for k in range(3)]
        return sum(ce(t.linear(f, "C", f"{k}.c{c}."), y) for f, y, k in parts for c in (1, 2)) / 3

    def target():
        f = t.features(u["img"])
        return sum(disagreement(*(t.linear(f, "C", f"{k}.c{c}.") for c in (1, 2))) for k in range(3)) / 3

    features = [*(t.features(x["img"][row]) for row in rows), t.features(u["img"])]
    distance = 0
    for a in range(4):
        for b in range(a):
            for moment in (lambda f: f.mean(0), lambda f: ((f - f.mean(0)) ** 2).sum(0) / (len(f) - 1)):
                distance += ((moment(features[a]) - moment(features[b])) ** 2).sum().sqrt() / 12
    losses = [source() + 0.5 * distance]
    t.step({("F", "C"): losses[0]})
    losses.append(source() - target())
    t.step({("C",): losses[1]})
    for _ in range(2):
        losses.append(target())
        t.step({("F",): losses[-1]})
    return dict(zip(("loss_step_A", "loss_step_B", "loss_step_C"), (losses[0], losses[1], losses[-1]), strict=True))


def mme(t, x, u):
    z = t.prototypes(t.features(x["img"]))
    loss_x = ce(z, x["label"])
    t.step({("F", "C"): loss_x})
    p = probabilities(t.prototypes(t.features(u["img"])))
    entropy = log_loss(p, p)
    t.step({("F",): 0.1 * entropy, ("C",): -0.1 * entropy})
    return {"loss_x": loss_x, "acc_x": accuracy(z, x["label"]), "loss_u": -entropy}


def cdac(t, x, u):
    z, y = t.prototypes(t.features(x["img"][0])), x["label"]
    loss_x = ce(z, y)
    t.step({("F",): loss_x, ("C",): 2 * loss_x})  # the classifier's learning rate is twice that of the features
    f, s, s2 = (t.features(view) for view in (u["img"][0], *u["img2"]))
    places = [set(row.topk(2).indices.tolist()) for row in f]
    same = torch.tensor([[float(a == b) for b in places] for a in places], dtype=torch.float64)
    p, p_s, p_s2 = (probabilities(t.prototypes(view)) for view in (f, s, s2))
    product = p @ p_s.T
    aac = (same * (product + 1e-7).log() + (1 - same) * (1 - product + 1e-7).log()).mean()
    confidence, guess = p.detach().max(1)
    mask = (confidence >= t.node.P_THRESH).double()
    pl = (mask * ce_rows(t.prototypes(s2), guess)).mean()
    cons = 3 * math.exp(-5 * (1 - 7 / 30) ** 2) * ((p_s - p_s2) ** 2).mean()
    shared = pl + cons
    # The reversed gradient changes the sign of the adversarial loss for the features.
    t.step({("F",): shared - aac, ("C",): 2 * (shared + aac)})
    right = (guess == u["label"]).double()
    kept = (right * mask).sum() / (mask.sum() + 1e-5)
    quality = {"p_u_pred_acc": right.mean(), "p_u_pred_acc_thre": kept, "p_u_pred_keep": mask.mean()}
    losses = {"loss_x": loss_x, "acc_x": accuracy(z, y), "loss_u": aac + shared, "aac_loss": aac}
    return {**losses, "pl_loss": pl, "cons_loss": cons, **quality}


def mean_teacher(t, x, u):
    z = t.logits(x["img"])
    loss_x = ce(z, x["label"])
    target = probabilities(t.logits(u["img"], "teacher")).detach()
    loss_u = ((probabilities(t.logits(u["img"])) - target) ** 2).sum(1).mean()
    t.step({("model",): loss_x + math.exp(-5 * (1 - 2 / 5) ** 2) * loss_u})  # the third epoch of five
    average_weights(t)
    return {"loss_x": loss_x, "acc_x": accuracy(z, x["label"]), "loss_u": loss_u}


def average_weights(t):
    for key, old in t.parts["teacher"].items():  # the eighth step: the mean of eight
        t.parts["teacher"][key] = t.leaf(7 / 8 * old + 1 / 8 * t.parts["model"][key])


def self_ensembling(t, x, u):
    z = t.logits(x["img"][0])
    loss_x = ce(z, x["label"])
    target = probabilities(t.logits(u["img"][1], "teacher")).detach()
    mask = (target.max(1).values > t.node.CONF_THRE).double()
    assert 0 < mask.mean() < 1
    loss_u = (mask * ((probabilities(t.logits(u["img"][0])) - target) ** 2).sum(1)).mean()
    t.step({("model",): loss_x + loss_u})
    average_weights(t)
    return {"loss_x": loss_x, "acc_x": accuracy(z, x["label"]), "loss_u": loss_u}


def domain_mix(t, x, _):
    share = torch.distributions.Beta(1.0, 1.0).rsample((1,)).double()
    image, y, d = x["img"], x["label"], x["domain"]
    torch.randperm(len(y))
    other = torch.empty(len(y), dtype=torch.int64)
    for k in range(3):  # each domain has a third of the batch, so no image is drawn twice
        candidates = torch.arange(len(y))[d != k]
        drawn = torch.ones(len(candidates)).multinomial(int((d == k).sum()))
        other[d == k] = candidates[drawn]
    assert (d[other] != d).all()
    z = t.logits(share * image + (1 - share) * image[other])
    loss = (share * ce(z, y) + (1 - share) * ce(z, y[other])).sum()
    t.step({("model",): loss})
    return {"loss": loss, "acc": accuracy(z, y)}


LOOPS = {
    "Vanilla": (supervised,),
    "SourceOnly": (supervised,),
    "SupBaseline": (supervised,),
    "CrossGrad": (
        *(crossgrad, "TRAINER.CROSSGRAD.EPS_F", 3.0, "TRAINER.CROSSGRAD.EPS_D", 2.0),
        *("TRAINER.CROSSGRAD.ALPHA_F", 0.3, "TRAINER.CROSSGRAD.ALPHA_D", 0.6),
    ),
    "DDAIG": (
        *(ddaig, "TRAINER.DDAIG.LMDA", 0.4, "TRAINER.DDAIG.ALPHA", 0.25, "TRAINER.DDAIG.WARMUP", 2),
        *("TRAINER.DDAIG.CLAMP", True, "TRAINER.DDAIG.CLAMP_MIN", -0.9, "TRAINER.DDAIG.CLAMP_MAX", 0.9),
    ),
    "DAELDG": (daeldg,),
    "DAEL": (dael, "TRAINER.DAEL.CONF_THRE", 0.5),
    "MixMatch": (mixmatch,),
    "FixMatch": (fixmatch, "TRAINER.FIXMATCH.CONF_THRE", 0.5),
    "EntMin": (entmin, "TRAINER.ENTMIN.LMDA", 0.5),
    "DANN": (dann,),
    "ADDA": (adda,),
    "MCD": (mcd, "TRAINER.MCD.N_STEP_F", 2),
    "M3SDA": (m3sda, "TRAINER.M3SDA.N_STEP_F", 2),
    "MME": (mme,),
    "CDAC": (cdac,),
    "MeanTeacher": (mean_teacher, "TRAINER.MEANTEACHER.RAMPUP", 5),
    "SE": (self_ensembling,),
    "DomainMix": (domain_mix,),
}
