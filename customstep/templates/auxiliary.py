"""Losses beside the main one (R1: additional losses)."""

import types
from collections.abc import Mapping

import keras

from customstep import replicas
from customstep.schedules import check_weight, weight_at
from customstep.step import Objective, StepModel

__all__ = ["AuxiliaryLoss"]


@keras.saving.register_keras_serializable("customstep")
class AuxiliaryLoss(StepModel):
    """A main output, and further losses that are there to teach the layers it shares.

    The outputs are a dict; each has a loss of its own and a weight, fixed or scheduled over the
    steps. Terms that are no output's loss, such as a sparsity or a divergence, are returned by
    `auxiliary_terms`. For each of both, `fit` and `evaluate` log `<name>_loss` and
    `weighted_<name>_loss`; the weighted ones add up to `loss`, and the main one contains the
    regularizers of the layers. Once trained, `main_model` is the main output alone.

    With fixed weights it is `keras.Model`, bit for bit. Use that where neither schedules,
    weighted logs nor terms of your own are wanted. For a copy of a functional one use
    `type(model).from_config(model.get_config())`: `keras.models.clone_model`, which would not pass
    `main`, is an error.

    Caruana 1997 (Multitask Learning); Szegedy et al. 2015 (arXiv:1409.4842), section 5, for heads
    that are discarded after the training; Bowman et al. 2016 (arXiv:1511.06349), section 3.1, for
    a weight that is annealed.

    Args:
        inputs: as for `keras.Model`; or none of the two, and a `call` that returns the outputs.
        outputs: dict of output name to tensor.
        main: the name of the main output.
        **kwargs: `name` and `dtype`, as for any model.

    Attributes:
        auxiliary_names: the names of the terms that `auxiliary_terms` returns.

    Raises:
        ValueError: the outputs are not a dict with the main one in it.

    Example:

        model = AuxiliaryLoss(
            inputs=x, outputs={"classes": classes, "rotation": rotation}, main="classes"
        )
        model.compile(
            "adam",
            loss={"classes": "sparse_categorical_crossentropy", "rotation": "mse"},
            loss_weights={"rotation": LinearDecay(0.3, steps=5000)},
            metrics={"classes": "accuracy"},
        )
        model.fit(images, {"classes": labels, "rotation": angles})
        model.main_model().save("classifier.keras")
    """

    auxiliary_names: tuple[str, ...] = ()

    # By output name; read-only, because Keras would track, and save, what a dict holds.
    _judges = types.MappingProxyType({})

    def __init__(self, *args, main, **kwargs):
        super().__init__(*args, **kwargs)
        self.main = main
        if self._is_functional:
            self._check_outputs(self.output)

    def auxiliary_terms(self, batch, outputs, training):
        """Override this for terms that are no output's loss.

        Args:
            batch: `Batch`, preprocessed.
            outputs: dict of output name to tensor.
            training: True in `fit`, False in `evaluate`.

        Returns:
            Dict of each of `auxiliary_names` to a float scalar, a mean over the batch without its
            weight.

        Example:

            class SparseAutoencoder(AuxiliaryLoss):
                auxiliary_names = ("sparsity",)

                def auxiliary_terms(self, batch, outputs, training):
                    return {"sparsity": tf.reduce_mean(tf.abs(outputs["code"]))}
        """
        return {}

    @property
    def terms(self):
        names = (*self._judges, *self.auxiliary_names)
        return (*(f"{n}_loss" for n in names), *(f"weighted_{n}_loss" for n in names))

    def objective(self, batch, training):
        """The sum of all losses and auxiliary terms, each times its weight at this step."""
        outputs = self(batch.x, training=training)
        self._check_outputs(outputs)
        losses = self._output_losses(batch, outputs)
        losses.update(self._checked_auxiliary_terms(batch, outputs, training))
        logs, weighted = {}, {}
        for name, loss in losses.items():
            logs[f"{name}_loss"] = loss
            weighted[f"weighted_{name}_loss"] = loss * self._loss_weight(name)
        if self.losses:  # without targets, Keras computes what the layers add
            weighted[f"weighted_{self.main}_loss"] += replicas.whole(self.compute_loss())
        return Objective(weighted, outputs, logs)

    def main_model(self):
        """The main output alone, without the heads that only training needs.

        Returns:
            A plain `keras.Model` that shares the weights, is saved and loaded without this
            package, and predicts what `predict` returns for the main output.

        Raises:
            ValueError: the model is not made of a functional graph.
        """
        if not self._is_functional:
            raise ValueError(
                f"The main output of {type(self).__name__} cannot be cut out. Expected a model "
                "made of a functional graph; received one with a `call` of its own. Make it as "
                f"`{type(self).__name__}(inputs=..., outputs=..., main=...)`, or keep the part "
                "that predicts as a network of its own."
            )
        return keras.Model(self.input, self.output[self.main], name=self.name)

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, *, loss_weights=None, **kwargs):
        """As in `StepModel`, with losses and weights by name.

        Args:
            optimizer: as in `StepModel`.
            loss: dict of output name to a loss, given as in Keras. An output without one is not
                trained; the main output needs one.
            metrics: as in Keras, by output name.
            loss_weights: dict of output or auxiliary name to its weight: a number of at least 0,
                or a callable `step -> weight`, where `step` is a float32 scalar, the number of
                descents done, such as an object of `customstep.schedules` or of
                `keras.optimizers.schedules`. What is not named has weight 1.
            **kwargs: as in `StepModel`.

        Raises:
            ValueError: a name or a weight does not fit.
            TypeError: a weight that is scheduled is not a number.
        """
        loss, loss_weights = loss or {}, loss_weights or {}
        earlier, self._judges = self._judges, types.MappingProxyType(self._make_judges(loss))
        try:
            if self._is_functional:
                self._check_outputs(self.output)
            self._check_names()
            self._check_loss_weights(loss_weights)
            super().compile(optimizer, metrics=metrics, **kwargs)
        except BaseException:
            self._judges = earlier
            raise
        arguments = {**self._compile_arguments, "loss": loss, "loss_weights": loss_weights}
        self._compile_arguments = types.MappingProxyType(arguments)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As in Keras, which wants a target and a weight for every output or None for it."""
        if isinstance(sample_weight, Mapping):
            sample_weight = self._sample_weights(sample_weight, y_pred)
        return super().compute_metrics(x, self._targets(y, y_pred), y_pred, sample_weight)

    def _build_metrics(self, y, y_pred):
        if self._metrics_wait_for_predictions:
            y = self._targets(y, y_pred)
        super()._build_metrics(y, y_pred)

    @property
    def _is_functional(self):
        return hasattr(self, "output_names")

    def _output_losses(self, batch, outputs):
        """Dict of output name to its loss, the mean over the batch that Keras takes."""
        targets = self._targets(batch.y, outputs)
        weights = self._sample_weights(batch.sample_weight, outputs)
        losses = {}
        for name, judge in self._judges.items():
            if targets[name] is None:
                raise ValueError(
                    f"The output '{name}' has a loss and no target. Expected targets for "
                    f"{_listed(self._judges)}; received those of {_listed(batch.y)}. Add "
                    f"'{name}' to `y`, or leave its loss out of `compile`."
                )
            loss = judge.compute_loss(None, targets[name], outputs[name], weights[name])
            losses[name] = replicas.whole(loss)
        return losses

    def _checked_auxiliary_terms(self, batch, outputs, training):
        terms = self.auxiliary_terms(batch, outputs, training)
        if set(terms) != set(self.auxiliary_names):
            raise ValueError(
                f"`auxiliary_terms` of {type(self).__name__} does not return what the class "
                f"declares. Expected {_listed(self.auxiliary_names)}; received {_listed(terms)}. "
                f"Declare them in the class: `auxiliary_names = {tuple(terms)}`."
            )
        return {name: keras.ops.cast(term, keras.config.floatx()) for name, term in terms.items()}

    def _loss_weight(self, name):
        weight = self._compile_arguments["loss_weights"].get(name, 1.0)
        return weight_at(weight, self.optimizer.iterations)

    def _targets(self, y, outputs):
        """Dict of every output's name to its target, or None."""
        if not isinstance(y, Mapping):
            raise ValueError(
                f"The targets are not given by output. Expected a dict with the names "
                f"{_listed(outputs)}; received {type(y).__name__}. Pass such as "
                f"`y={{'{self.main}': ...}}`."
            )
        return {name: y.get(name) for name in outputs}

    def _sample_weights(self, sample_weight, outputs):
        """Dict of every output's name to its sample weights, or None."""
        if not isinstance(sample_weight, Mapping):
            return dict.fromkeys(outputs, sample_weight)
        if unknown := set(sample_weight) - set(outputs):
            raise ValueError(
                f"There are sample weights for an output that does not exist. Expected "
                f"{_listed(outputs)}; received {_listed(sorted(unknown))}. Correct the name."
            )
        return {name: sample_weight.get(name) for name in outputs}

    def _make_judges(self, loss):
        """Dict of output name to an empty model that computes its loss."""
        if not isinstance(loss, Mapping):
            raise ValueError(
                f"The losses are not given by output. Expected a dict of output name to loss; "
                f"received {loss!r}. Pass such as `loss={{'{self.main}': ...}}`."
            )
        judges = {}
        for name, one in loss.items():
            if isinstance(one, (list, tuple, dict)):
                raise ValueError(
                    f"The output '{name}' has several losses. Expected one; received {one!r}. "
                    "Add them up in a function of `(y_true, y_pred)`."
                )
            if one is not None:
                # All of Keras's reading of a loss, its strings, masks and weights, comes with it.
                judges[name] = keras.Model(name="judge")
                judges[name].compile(optimizer=None, loss=one)
        if self.main not in judges:
            raise ValueError(
                f"The main output has no loss. Expected one for '{self.main}'; received losses "
                f"for {_listed(judges)}. Add it to `loss`, or choose another `main`."
            )
        return judges

    def _check_outputs(self, outputs):
        if not isinstance(outputs, Mapping) or self.main not in outputs:
            received = _listed(outputs) if isinstance(outputs, Mapping) else repr(outputs)
            raise ValueError(
                f"The outputs of {type(self).__name__} have no main one. Expected a dict with "
                f"'{self.main}' in it; received {received}. Pass `outputs={{'{self.main}': ...}}`, "
                "or return such a dict from `call`."
            )
        if unknown := set(self._judges) - set(outputs):
            raise ValueError(
                f"There is a loss for an output that does not exist. Expected {_listed(outputs)}; "
                f"received {_listed(sorted(unknown))}. Correct the name in `loss`."
            )

    def _check_names(self):
        if len(set(self.terms)) < len(self.terms):
            names = (*self._judges, *self.auxiliary_names)
            raise ValueError(
                "Two terms have the same name in the logs. Expected names that differ, also with "
                f"'weighted_' in front; received {_listed(names)}. Rename one of them."
            )

    def _check_loss_weights(self, loss_weights):
        names = (*self._judges, *self.auxiliary_names)
        if not isinstance(loss_weights, Mapping) or set(loss_weights) - set(names):
            raise ValueError(
                f"The loss weights do not fit the losses. Expected a dict by the names "
                f"{_listed(names)}, all or some; received {loss_weights!r}. Correct the names, or "
                "give each output a loss."
            )
        for name, weight in loss_weights.items():
            check_weight(f"loss_weights['{name}']", weight)


def _listed(names):
    return ", ".join(f"'{name}'" for name in names) or "none"
