"""PartiallyFrozen: what rests is bit-equal, what wakes goes on, and nothing else is different."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.optimizers import SGD, Adam, AdamW

from customstep import GAN, Objective, StepModel
from customstep.callbacks import Unfreeze
from customstep.conditions import Every
from customstep.gradients import GradientSurgery, SharpnessAware
from customstep.selection import Part
from customstep.templates import PartiallyFrozen
from tests.descriptors import discriminator, equal, generator
from tests.test_examples import EXAMPLES, load

_rng = np.random.default_rng(0)
X = _rng.normal(size=(16, 4)).astype("float32")
Y = _rng.normal(size=(16, 2)).astype("float32")
WORDS = _rng.integers(0, 5, (16, 3))


def network(cls=PartiallyFrozen, optimizer=None, **arguments):
    """A stem with batch norm, a second batch norm, and a head; the same weights every time."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = layers.Dense(5, name="dense")(inputs)
    stem = keras.Model(inputs, layers.BatchNormalization(name="norm")(x), name="stem")
    x = layers.BatchNormalization(name="norm")(layers.ReLU()(stem(inputs)))
    model = cls(inputs=inputs, outputs=layers.Dense(2, name="head")(x), **arguments)
    model.compile(optimizer or SGD(0.1, momentum=0.9), "mse")
    return model


def train(model, epochs=1, x=X, y=Y, **arguments):
    model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, **arguments)


def weights(model, *layer_names):
    """Copies of the weights of layers by name, or of all."""
    chosen = [model.get_layer(name) for name in layer_names] or [model]
    return [np.array(w) for layer in chosen for w in layer.get_weights()]


OPTIMIZERS = {
    "momentum": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.1),
    "decay": lambda: AdamW(0.1, weight_decay=0.5),
    "ema": lambda: SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.5),
    "ema-overwrites": lambda: AdamW(0.1, 0.5, use_ema=True, ema_overwrite_frequency=2),
    "accumulates": lambda: Adam(0.1, gradient_accumulation_steps=2, clipnorm=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_stays_bit_equal(name):
    """A layer, a variable, statistics of a layer that trains, and a part of a tensor."""
    mask = np.array([[True, False]])
    freeze = ["stem/*", "norm/moving_mean", "head/bias", Part("head/kernel", mask=mask)]
    # Whatever the optimizer has gathered before, it has to leave alone.
    model = network(optimizer=OPTIMIZERS[name]())
    train(model)
    model.freeze(freeze)
    stem, norm, (kernel, bias) = (weights(model, n) for n in ("stem", "norm", "head"))
    train(model, epochs=2)
    assert equal(weights(model, "stem"), stem)
    after = weights(model, "norm")
    assert np.array_equal(after[2], norm[2])
    assert not any(np.array_equal(after[i], norm[i]) for i in (0, 1, 3))
    kernel_after, bias_after = weights(model, "head")
    assert np.array_equal(bias_after, bias)
    assert np.array_equal(kernel_after[:, 0], kernel[:, 0])
    assert not (kernel_after[:, 1] == kernel[:, 1]).any()


def test_frozen_batch_norm_normalizes_by_its_statistics():
    model = network(freeze="*")
    model.unfreeze("head/*")
    statistics = (np.arange(5.0), np.arange(1.0, 6.0))
    model.get_layer("norm").set_weights([np.ones(5), np.zeros(5), *statistics])
    x = keras.ops.relu(model.get_layer("stem")(X, training=False))
    expected = (x - statistics[0]) / np.sqrt(statistics[1] + 1e-3)
    np.testing.assert_allclose(model.get_layer("norm")(x, training=True), expected, rtol=1e-5)


def test_layer_that_assigns_its_own_weights_is_kept():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    spectral = layers.SpectralNormalization(layers.Dense(3), name="spectral")
    outputs = layers.Dense(2)(spectral(inputs))
    model = PartiallyFrozen(inputs=inputs, outputs=outputs, freeze="spectral/*")
    model.compile("sgd", "mse")
    before = weights(model, "spectral")
    train(model)
    assert equal(weights(model, "spectral"), before)


def test_rows_of_an_embedding_rest_under_adam():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(5, 4, name="words")(inputs))
    freeze = Part("words/*", rows=range(2))
    model = PartiallyFrozen(inputs=inputs, outputs=layers.Dense(2)(x), freeze=freeze)
    model.compile(AdamW(0.1, weight_decay=0.5), "mse")
    [before] = weights(model, "words")
    train(model, x=WORDS)
    [after] = weights(model, "words")
    assert np.array_equal(after[:2], before[:2])
    assert not (after[2:] == before[2:]).any()
    momentum, velocity = (np.array(v) for v in model.optimizers["model"].variables[2:4])
    assert momentum.shape == (5, 4) and not momentum[:2].any() and not velocity[:2].any()
    assert momentum[2:].all()


def test_frozen_part_has_no_share_in_the_clipped_norm():
    """Of the gradient -2 (3, 4), with the second frozen, only 3 counts: the step is the whole 1."""
    x = keras.Input((2,))
    output = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="w")(x)
    model = PartiallyFrozen(inputs=x, outputs=output, freeze=Part("w/kernel", rows=[1]))
    model.compile(SGD(1.0, global_clipnorm=1.0), "mse")
    model.train_on_batch(np.array([[3.0, 4.0]]), np.array([[1.0]]))
    np.testing.assert_allclose(model.get_weights()[0], [[1.0], [0.0]])


def test_worst_point_of_sharpness_is_sought_among_what_trains():
    """SAM by hand: w <- w - 0.1 g(w + 0.5 g / ||g||), all over the entries that train."""
    model = network(freeze=["norm/*", "stem/norm/*", Part("stem/dense/kernel", rows=[0, 2])])
    model.compile(SGD(0.1), "mse", gradients=SharpnessAware(0.5))
    names = ["stem/dense/kernel", "stem/dense/bias", "head/kernel", "head/bias"]
    stem, head = model.get_layer("stem").get_layer("dense"), model.get_layer("head")
    trained = [*stem.trainable_variables, *head.trainable_variables]
    masks = [np.ones(v.shape) for v in trained]
    masks[0][[0, 2]] = 0
    weights_before = [v.numpy() for v in trained]

    def gradients_at(values):
        for variable, value in zip(trained, values):
            variable.assign(value)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        gradients = tape.gradient(loss, [v.value for v in trained])
        return [g.numpy() * mask for g, mask in zip(gradients, masks)]

    gradients = gradients_at(weights_before)
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    worst = [w + 0.5 * g / norm for w, g in zip(weights_before, gradients)]
    expected = [w - 0.1 * g for w, g in zip(weights_before, gradients_at(worst))]
    gradients_at(weights_before)  # leaves the variables as they were
    model.train_on_batch(X, Y)
    for name, variable, value in zip(names, trained, expected):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-5, err_msg=name)


def test_surgery_judges_conflicts_on_what_trains():
    """Terms that agree where w trains, and oppose each other more where it is frozen."""

    class TwoTerms(PartiallyFrozen):
        terms = ("a", "b")

        def objective(self, batch, training):
            w = self.get_layer("w").kernel[:, 0]
            return Objective({"a": w[0] + 5 * w[1], "b": 2 * w[0] - 5 * w[1]})

    x = keras.Input((2,))
    output = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="w")(x)
    model = TwoTerms(inputs=x, outputs=output, freeze=Part("w/kernel", rows=[1]))
    model.compile(SGD(1.0), gradients=GradientSurgery())
    model.train_on_batch(np.ones((2, 2)))
    np.testing.assert_allclose(model.get_weights()[0], [[-3.0], [0.0]])


def test_variable_that_wakes_late_takes_longer_steps_under_adam():
    """Under a constant gradient, as documented: (1 - 0.9^k) / sqrt(1 - 0.999^k) times the rate."""
    x = keras.Input((1,))
    output = layers.Dense(1, kernel_initializer="zeros", name="w")(x)
    model = PartiallyFrozen(inputs=x, outputs=output, freeze="w/kernel")
    model.compile(Adam(0.01), "mae")
    model.optimizer.iterations.assign(20_000)  # as if the bias alone had trained so long
    model.unfreeze("*")
    kernels = [0.0]
    for _ in range(12):
        model.train_on_batch(np.array([[1.0]]), np.array([[100.0]]))
        kernels.append(model.get_layer("w").kernel.numpy().item())
    factors = np.diff(kernels) / 0.01
    np.testing.assert_allclose(factors[[0, 11]], [3.16, 6.56], rtol=2e-3)


def test_frozen_variables_have_no_gradient_in_the_graph():
    def types(freeze):
        model = network(freeze=freeze)
        step = tf.function(model.train_step, autograph=False)
        graph = step.get_concrete_function((X, Y)).graph
        return [operation.type for operation in graph.get_operations()]

    matrix_products = [types(freeze).count("MatMul") for freeze in ((), "stem/*")]
    # Two forward; backward two for the head and one for the stem, whose input needs none. A
    # frozen stem leaves one of the head's, because batch norm between them is still trained.
    assert matrix_products == [5, 4]


def test_state_of_the_optimizer_rests_and_is_used_again():
    """Plain SGD with momentum by hand: v <- 0.5 v - 0.1 g and w <- w + v, only while awake."""
    x = keras.Input((1,))
    a = layers.Dense(1, use_bias=False, kernel_initializer="ones", name="a")(x)
    model = PartiallyFrozen(
        inputs=x, outputs=layers.Dense(1, use_bias=False, kernel_initializer="ones", name="b")(a)
    )
    model.compile(SGD(0.1, momentum=0.5), "mse")
    w, v = np.ones(2), np.zeros(2)

    def step(awake):
        model.train_on_batch(np.array([[1.0]]), np.array([[2.0]]))
        gradient = 2 * (w[0] * w[1] - 2) * w[::-1]
        v[awake] = 0.5 * v[awake] - 0.1 * gradient[awake]
        w[awake] += v[awake]
        np.testing.assert_allclose([float(k[0, 0]) for k in model.get_weights()], w, rtol=1e-5)
        slots = model.optimizers["model"].variables[2:]
        np.testing.assert_allclose([float(s.numpy()[0, 0]) for s in slots], v, rtol=1e-4)

    step([0, 1])
    step([0, 1])
    model.freeze("a/*")
    step([1])
    step([1])
    model.unfreeze("a/*")
    step([0, 1])


def test_once_all_is_unfrozen_it_trains_like_an_ordinary_model():
    optimizer = OPTIMIZERS["ema-overwrites"]
    ordinary = network(StepModel, optimizer())
    model = network(optimizer=optimizer(), freeze=["stem/*", Part("head/kernel", rows=[1])])
    train(model)
    model.unfreeze("*")
    assert model.frozen == {}
    ordinary.set_weights(model.get_weights())
    for a, b in zip(ordinary.optimizer.variables, model.optimizers["model"].variables):
        a.assign(b)
    for one in (model, ordinary):
        train(one, epochs=2)
    assert equal(weights(model), weights(ordinary))


def test_without_freezing_it_is_an_ordinary_model():
    models = [network(), network(StepModel)]
    for model in models:
        train(model, epochs=2)
    assert equal(*map(weights, models))


def test_layers_that_were_not_trainable_before_stay_so():
    model = network()
    model.get_layer("norm").trainable = False
    model.get_layer("head").bias.trainable = False
    model.compile("sgd", "mse")
    model.freeze("*")
    assert model.trainable_variables == []
    model.unfreeze("*")
    assert not model.get_layer("norm").trainable
    names = [variable.path.split("/")[-1] for variable in model.trainable_variables]
    assert names == ["kernel", "bias", "gamma", "beta", "kernel"]


def test_unfreeze_says_that_keras_holds_what_it_cannot_wake():
    model = network(freeze="head/*")
    model.get_layer("stem").trainable = False
    held = r"for 'stem/\*'. Expected .* received 4 variables such as 'stem/dense/kernel'"
    with pytest.warns(UserWarning, match=held):
        model.unfreeze("stem/*")
    assert model.frozen.keys() == {"head/kernel", "head/bias"}
    for _ in range(2):  # what trains already, or never does, may be named again
        model.unfreeze("*", "head/*", "norm/moving*", Part("head/kernel", rows=[0]))
    assert model.frozen == {}


def test_update_of_what_rests_may_depend_on_a_condition():
    model = network(freeze=["stem/*", Part("head/kernel", rows=[1])])
    model.compile(SGD(0.1), "mse", when=Every(2))
    seen = [weights(model, "stem", "head")]
    for _ in range(3):
        model.train_on_batch(X, Y)
        seen.append(weights(model, "stem", "head"))
    moved = [not np.array_equal(a[-2][0], b[-2][0]) for a, b in zip(seen, seen[1:])]
    assert moved == [True, False, True]
    assert equal(seen[0][:-2], seen[-1][:-2])
    assert np.array_equal(seen[0][-2][1], seen[-1][-2][1])


def test_frozen_says_what_rests():
    model = network(freeze=["stem/norm/*", Part("head/kernel", rows=[1, 2])])
    model.freeze(Part("head/kernel", rows=[4]))
    model.unfreeze("stem/norm/moving*", Part("head/kernel", rows=slice(2)))
    frozen = model.frozen
    assert np.array_equal(frozen.pop("head/kernel")[:, 0], [False, False, True, False, True])
    assert frozen == {"stem/norm/gamma": True, "stem/norm/beta": True}


@keras.saving.register_keras_serializable("tests")
class Composite(PartiallyFrozen):
    """Layers of its own, which Keras names by counting: "dense_7" here is "dense_9" there."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.first = layers.Dense(width)
        self.second = layers.Dense(width)
        self.last = layers.Dense(2)

    def call(self, x, training=False):
        return self.last(self.second(self.first(x)))


def test_model_built_by_its_first_batch_is_frozen_from_its_first_step():
    model = Composite(3, freeze="first/*")
    model.compile("sgd", "mse")
    steps = []
    for _ in range(2):
        model.train_on_batch(X, Y)
        steps.append([weight.numpy() for weight in model.weights])
    for before, after in zip(steps[0][:2], steps[1][:2]):
        assert np.array_equal(before, after)
    assert not steps[0][1].any()  # a bias is zero until it is trained
    assert not np.array_equal(steps[0][2], steps[1][2])


def test_loaded_model_freezes_the_same_whatever_its_layers_are_called(tmp_path):
    model = Composite(4)
    model.compile(Adam(0.1), "mse")
    train(model)
    # By the names of now, which another layer bears in the loaded model or none at all.
    model.freeze(f"{model.second.name}/*", Part(model.last.path + "/kernel", rows=[3]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.second.name != model.second.name
    assert loaded.frozen.keys() == {"second/kernel", "second/bias", "last/kernel"}
    before = weights(loaded)
    for one in (model, loaded):
        train(one)
    assert equal(weights(model), weights(loaded))
    assert equal(weights(loaded)[2:4], before[2:4])
    loaded.unfreeze("*")
    assert len(loaded.trainable_variables) == 6


def test_saved_model_knows_what_was_unfrozen(tmp_path):
    model = network(freeze="*")
    model.unfreeze("head/*", "norm/*")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.frozen == model.frozen
    assert not loaded.get_layer("stem").get_layer("norm").trainable
    loaded.unfreeze("*")
    assert len(loaded.trainable_variables) == 8


def test_unfreeze_wakes_at_the_start_of_its_epoch():
    model, by_hand = network(freeze="*"), network(freeze="*")
    for one in (model, by_hand):
        one.unfreeze("head/*")
    unfreeze = Unfreeze({1: "norm/*", 2: [model.get_layer("stem")]})
    train(model, epochs=3, callbacks=[unfreeze])
    train(by_hand)
    by_hand.unfreeze("norm/*")
    train(by_hand)
    by_hand.unfreeze("*")
    train(by_hand)
    assert equal(weights(model), weights(by_hand))
    for a, b in zip(model.optimizer.variables, by_hand.optimizer.variables):
        assert np.array_equal(a.numpy(), b.numpy())


def test_run_that_goes_on_is_unfrozen_as_far_as_it_had_been():
    model = network(freeze="*")
    unfreeze = Unfreeze({1: "head/*", 3: "norm/*", 4: "*"})
    train(model, epochs=4, initial_epoch=3, callbacks=[unfreeze])
    assert set(model.frozen) == {
        *(f"stem/dense/{name}" for name in ("kernel", "bias")),
        *(f"stem/norm/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    }


def test_pattern_of_a_later_epoch_is_checked_before_training():
    model = network(freeze="stem/*")
    with pytest.raises(ValueError, match="'stm/\\*' matches no variable.*like 'stem/\\*'"):
        train(model, callbacks=[Unfreeze({0: "stem/*", 5: "stm/*"})])
    assert model.steps == 0 and len(model.frozen) == 6


def test_callback_refuses_what_it_cannot_work_with():
    with pytest.raises(ValueError, match="`epoch` is out of its range"):
        Unfreeze({-1: "*"})
    with pytest.raises(TypeError, match="Expected one with `unfreeze`.*received StepModel"):
        train(network(StepModel), callbacks=[Unfreeze({0: "*"})])
    model = Composite(3)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="which is not built. Call it on a batch"):
        train(model, callbacks=[Unfreeze({0: "*"})])
    with pytest.raises(ValueError, match="received one that is not built. Call it on a batch"):
        model.unfreeze("*")


def test_mistake_in_freeze_is_found_at_once_and_changes_nothing():
    with pytest.raises(ValueError, match="'hed/\\*' matches no variable.*like 'head/\\*'"):
        network(freeze=["stem/*", "hed/*"])
    model = network(freeze="stem/*")
    with pytest.raises(ValueError, match="'hed/\\*' matches no variable"):
        model.freeze("head/*", "hed/*")
    assert len(model.frozen) == 6


@keras.saving.register_keras_serializable("tests")
class FrozenGAN(PartiallyFrozen, GAN):
    pass


@pytest.mark.parametrize("when", [None, {"discriminator": Every(2)}])
def test_any_template_can_be_frozen_in_parts(when):
    adam = {"discriminator": Adam(0.01), "generator": Adam(0.01)}
    freeze = "discriminator/conv2d*"
    gan = FrozenGAN(generator(), discriminator(), 3, freeze=freeze)
    gan.compile(adam, when=when)
    before = [weights(network) for network in (gan.discriminator, gan.generator)]
    gan.fit(_rng.uniform(-1, 1, (8, 4, 4, 1)).astype("float32"), batch_size=4, verbose=0)
    after = [weights(network) for network in (gan.discriminator, gan.generator)]
    assert equal(before[0][:2], after[0][:2])  # the convolution's kernel and bias
    assert not np.array_equal(before[0][-2], after[0][-2])
    assert not np.array_equal(before[1][0], after[1][0])


def test_moving_average_rests_where_it_is_frozen():
    mask = np.arange(16) % 2 == 0
    freeze = ["ema_generator/batch*", Part("ema_generator/dense*/kernel", mask=mask)]
    gan = FrozenGAN(generator(), discriminator(), 3, freeze=freeze)
    gan.compile({"discriminator": Adam(0.01), "generator": Adam(0.01)})
    before = weights(gan.ema_generator)
    gan.fit(_rng.uniform(-1, 1, (8, 4, 4, 1)).astype("float32"), batch_size=4, verbose=0)
    after = weights(gan.ema_generator)
    assert equal(before[1:5], after[1:5])  # of batch norm
    for number in (0, 5):  # the kernels
        assert np.array_equal(before[number][:, mask], after[number][:, mask])
        assert (before[number][:, ~mask] != after[number][:, ~mask]).any()


def test_example_proves_what_stays_and_leaves_its_picture(tmp_path, capsys):
    example = load(EXAMPLES[0].with_name("freeze_transfer.py"))
    results = example.main(["--smoke", "--out", str(tmp_path)])
    keras.mixed_precision.set_global_policy("float32")
    assert set(results["accuracy"]) == {"frozen", "gradual", "full", "scratch"}
    assert "bit-equal" in capsys.readouterr().out
    assert (tmp_path / "movement.png").is_file()
