"""The config of training."""

from typing import Literal

from pydantic import Field, model_validator

from anyecg.loaders.settings import Section

Head = Literal["multilabel", "exclusive", "regression"]
Model = Literal["resnet", "s4d", "net1d"]


class FinetuneConfig(Section):
    """How a network is trained."""

    model: Model = Field(
        "resnet", description="network: resnet or s4d (small), or net1d (30.7 M parameters, ECGFounder's)"
    )
    weights: str = Field(
        "",
        description="what to start from: a model of ours (folder, .safetensors), or for net1d ECGFounder's .pth or "
        "'anyecg import-weights' of it; empty: from scratch",
    )
    train: Literal["all", "head"] = Field("all", description="what is trained: all layers, or the head alone")
    head: Head = Field(
        "multilabel", description="outputs: multilabel, exclusive (one label of all) or regression (values)"
    )
    join: Literal["logits", "features"] = Field(
        "logits", description="windows of a sample: their mean logit, or a head that reads their features together"
    )
    window_loss: float = Field(0.3, ge=0, le=10, description="join 'features': weight of the single windows' own loss")
    horizon_min: Literal[60, 30, 15] = Field(60, description="half-width of the time around a draw, in minutes")
    seed: int = Field(0, ge=0, lt=2**31, description="another start and order on the same split: added to the seed")
    epochs: int = Field(20, ge=1, le=10_000, description="passes over the training pairs")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="samples in a global batch, over all ranks")
    accumulation: int = Field(1, ge=1, le=1024, description="parts that a rank cuts its share of a batch into")
    average: Literal["entries", "targets"] = Field(
        "entries", description="the loss is the mean over all measured entries, or over targets of each one's mean"
    )
    positive_weight: float = Field(
        0.0, ge=0, le=1, description="multilabel: abnormal labels count (normal / abnormal) ^ this times"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread over all")
    learning_rate: float = Field(1e-3, gt=0, lt=10, description="largest learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, lt=10, description="weight decay of AdamW; biases and norms have none")
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        "cosine", description="after the warm-up: half a cosine to zero, a fall at each plateau, or level"
    )
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising learning rate")
    plateau_patience: int = Field(10, ge=0, description="plateau: validations without a better one before a fall")
    plateau_factor: float = Field(0.1, gt=0, lt=1, description="plateau: what the learning rate is multiplied by")
    weight_average: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, which is then what is published; 0: off"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of a gradient")
    zero: Literal[0, 1, 2] = Field(0, description="DeepSpeed's ZeRO stage: what ranks share among them")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="bf16 computes under autocast; auto: bf16 on a GPU, float32 on a CPU"
    )
    compile: bool = Field(False, description="torch.compile; on a CPU it needs a C++ compiler")
    validate_every: int = Field(0, ge=0, description="steps between validations; 0: after each epoch")
    best_by: Literal["loss", "score"] = Field(
        "loss", description="what is published: lowest validation loss, or highest mean AUROC (R2 for a regression)"
    )
    patience: int = Field(0, ge=0, description="stop after so many validations without a better one; 0: never")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0: after each validation")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")
    most_left_out: int = Field(10, ge=0, description="steps with a gradient that is not finite before the run stops")
    hang_seconds: float = Field(45.0, ge=0, description="end the job when a rank is stuck for so long; 0: never")
    ranks: int = Field(2, ge=1, description="MPI ranks that train and predict, one a GPU or a share of the cores")

    @model_validator(mode="after")
    def _fits_together(self):
        if self.weights.endswith(".pth") and self.model != "net1d":
            raise ValueError("weights of ECGFounder are those of model = 'net1d'; set it, or give a model of ours")
        if self.train == "head" and not self.weights:
            raise ValueError("train = 'head' leaves all other weights as they are; give the weights to start from")
        if self.positive_weight and self.head != "multilabel":
            raise ValueError("positive_weight belongs to head = 'multilabel'")
        return self
