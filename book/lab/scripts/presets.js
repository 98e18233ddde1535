// Small networks of the chapters to begin with.
(() => {
  "use strict";
  const SBN = (globalThis.SBN = globalThis.SBN || {});

  /** One layer with given pre-activations: the input is 1, the weights are what enters. */
  const layerOf = (a) => ({ weight: a.map((value) => [value]), bias: a.map(() => 0) });
  const alone = (a, loss, estimator, noise = "logistic", scale = 1) => ({
    layers: [layerOf(a)],
    input: [1],
    noise,
    scale,
    coding: "signs",
    loss: typeof loss === "string" ? { kind: "formula", text: loss } : loss,
    estimator,
  });
  const XOR = [
    { weight: [[2, 2], [-2, -2], [2, -2]], bias: [-2, -2, -2] },
    { weight: [[2, 2, -2], [2, 2, 0]], bias: [0, 2] },
  ];
  const THREE = [
    { weight: [[0.5, -0.3, 0.1], [-0.2, 0.4, 0.3], [0.3, 0.2, -0.4]], bias: [0.08, -0.1, 0.1] },
    { weight: [[-0.4, 0.3, 0.2], [0.3, 0.3, -0.3], [0.2, -0.5, 0.2]], bias: [0.1, 0.1, -0.1] },
    { weight: [[0.3, 0.4, -0.2], [-0.5, 0.2, 0.2], [0.2, 0.3, 0.4]], bias: [-0.1, 0.1, 0.1] },
  ];
  const BOWL = { kind: "quadratic", A: [[1, 0.5], [0.5, 1]], c: [0.3, -0.5] };
  const MEAN = { name: "reinforce", baseline: "mean" };

  const PRESETS = [];

  function preset(name, chapter, says, model) {
    PRESETS.push({ name, chapter, says, model });
  }

  const XOR_MODEL = {
    ...alone([0], BOWL, "straight_through"),
    layers: XOR,
    input: [1, 1],
    loss: { kind: "cross_entropy", weight: [[0, 0], [1, 1]], bias: [0, 0], target: 1 },
  };
  preset(
    "XOR by two votes",
    2,
    'Three hidden units look for patterns of two inputs, two units vote for "equal"; the loss is ' +
      "that of a wrong answer.",
    XOR_MODEL,
  );
  preset(
    "The same in bits",
    2,
    "The units are 0 and 1 and the weights on them twice as large, with other biases: the same " +
      "losses with the same probabilities.",
    {
      ...XOR_MODEL,
      layers: [XOR[0], { weight: [[4, 4, -4], [4, 4, 0]], bias: [-2, -2] }],
      coding: "bits",
      loss: { kind: "cross_entropy", weight: [[0, 0], [2, 2]], bias: [0, -2], target: 1 },
    },
  );
  preset(
    "Four losses, two units",
    4,
    "Any function of two units is a formula; REINFORCE needs its values only.",
    alone([0.7, -0.3], "1.7 + 0.8*x1 - 0.5*x2 + 0.4*x1*x2", MEAN),
  );
  preset(
    "A constant in the loss",
    4,
    "The 10 changes no gradient and makes nearly all of REINFORCE's variance; a baseline takes " +
      "it out.",
    alone([0.5, -0.3, 0.2], "10 + x1 - x2 + 0.5*x3", { name: "reinforce", baseline: 0 }),
  );
  preset(
    "A product of eight",
    5,
    "The units count only together: every flip changes the sign of the loss, and the gradient is " +
      "tiny beside its spread.",
    alone(Array(8).fill(0.5), "x1*x2*x3*x4*x5*x6*x7*x8", { name: "reinforce", baseline: 0 }),
  );
  preset(
    "A product of bits",
    6,
    "The loss is multilinear, so straight-through is unbiased, here in its only layer.",
    alone([0.9, -0.6, 0.4], "x1*x2*x3", "straight_through"),
  );
  preset(
    "A square is a constant",
    6,
    "On the states the loss is 1 and its gradient 0; straight-through does not know that and " +
      "pushes the unit towards a fair coin.",
    alone([1], "x1^2", "straight_through"),
  );
  preset(
    "A bowl over two units",
    6,
    "On a quadratic the bias of straight-through in unit i is 2f(a) A_ii mu: move a unit from 0 " +
      "and see it grow.",
    alone([1.5, -0.8], BOWL, "straight_through"),
  );
  preset(
    "Three layers, a linear loss",
    7,
    "Straight-through is exact in the last layer and biased below, because F is curved.",
    { ...alone([0], "x1 + x2 - x3", "straight_through"), layers: THREE, input: [1, -1, 1] },
  );
  preset(
    "Uniform noise, nothing saturated",
    7,
    "F is straight where the pre-activations are, and ZGR is exact in all three layers of this " +
      "quadratic; shrink the scale until a unit saturates.",
    {
      ...alone([0], "0.5*x1^2 + x1*x2 - x2*x3 + 0.3*x3", "zgr", "uniform", 1.2),
      layers: THREE,
      input: [1, -1, 1],
    },
  );
  preset(
    "One saturated state",
    7,
    "The unit above is certain when the one below is +1, so only the other state lets a gradient " +
      "pass, and straight-through is biased although the loss is linear.",
    {
      ...alone([0], "x1", "straight_through", "uniform"),
      layers: [layerOf([0.3]), { weight: [[0.8]], bias: [0.6] }],
    },
  );
  preset(
    "The wrong slope",
    8,
    "The units draw with logistic noise, the backward pass uses the slope 1: wrong even where " +
      "straight-through is exact.",
    alone([1.2, -0.4], "x1*x2 + 2*x1", "identity"),
  );
  preset(
    "A decided unit",
    10,
    "With uniform noise a unit near the end of its support takes its rarer state seldom, and " +
      "then ZGR divides by that probability; straight-through stays calm.",
    alone([0.99, 0.2], BOWL, "zgr", "uniform"),
  );
  preset(
    "Along the line",
    10,
    "s = 1 is straight-through, 0 is ZGR, -1 is DARN: the bias passes through 0, and the " +
      "variance falls on.",
    alone([1.5, -0.8], BOWL, { name: "chain_rule", s: 0.5 }),
  );
  preset(
    "A cube, as good as linear",
    10,
    "On the states x^3 is x, but its slope is three times as large: every member of the line is " +
      "wrong by this factor.",
    alone([0, 0.8], "x1^3 + x2^3", { name: "chain_rule", s: 0 }),
  );
  preset(
    "The mean as a baseline",
    11,
    "On a quadratic of four units the mean loss as baseline leaves REINFORCE the noise of what " +
      "the other units do.",
    alone([0.5, -0.3, 0.8, 0.1], "x1*x2 - x2*x3 + x3*x4 + 0.5*x1 - 0.5*x4 + 2", MEAN),
  );

  /** A copy of a preset's model, to change at will. */
  const fresh = (k = 0) => JSON.parse(JSON.stringify(PRESETS[k].model));

  Object.assign(SBN.net, { PRESETS, fresh });
})();
