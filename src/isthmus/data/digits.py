"""The handwritten digits that ship with scikit-learn: 1,797 images of 8 x 8 pixels.

References:
    Kaynak, "Methods of combining multiple classifiers and their applications to handwritten digit
    recognition", 1995; UCI ML repository, test set of optdigits.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def arrays() -> dict[str, np.ndarray]:
    """Return 1,437 training and 360 test images, uint8 (N, 1, 8, 8), every class in equal share.

    The 17 grey levels are spread over 0..255. The division is fixed: no seed moves it.
    """
    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    x_train, x_test, y_train, y_test = train_test_split(
        x, digits.target.astype(np.int64), test_size=360, random_state=0, stratify=digits.target
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
