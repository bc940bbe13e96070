"""Linear classifiers and their exact robust accuracy: the baseline that a network must beat."""

import numpy as np

from lipjax.data import Dataset, to_unit


def best_per_radius(data: Dataset, radii) -> list[float]:
    """The highest robust accuracy of any of a grid of linear classifiers, for each radius alone.

    Logistic regression and ridge classifiers over wide ranges of their penalties, chosen on the
    test split itself and separately per radius: no single classifier reaches all of it.
    """
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    def flat(split):
        return np.asarray(to_unit(split.images, data.max_value)).reshape(len(split.labels), -1)

    train, test = flat(data.train), flat(data.test)
    models = [LogisticRegression(C=c, max_iter=2000) for c in 10.0 ** np.arange(-3, 3)]
    models += [RidgeClassifier(alpha=a) for a in 10.0 ** np.arange(-2, 4)]
    best = np.zeros(len(radii))
    for model in models:
        model.fit(train, data.train.labels)
        weights, logits = model.coef_, test @ model.coef_.T + model.intercept_
        distance = exact_radius(weights, logits, data.test.labels)
        robust = [np.mean(distance > 0)] + [np.mean(distance > r) for r in radii[1:]]
        best = np.maximum(best, robust)
    return best.tolist()


def exact_radius(weights, logits, labels):
    """Signed l2 distance to the decision boundary, `float[n]`, positive where correct."""
    rows = np.arange(len(labels))
    gaps = logits[rows, labels][:, None] - logits
    pairs = np.linalg.norm(weights[labels][:, None, :] - weights[None], axis=-1)
    pairs[rows, labels] = 1
    gaps[rows, labels] = np.inf
    return (gaps / pairs).min(1)
