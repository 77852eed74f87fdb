"""The handwritten digits that ship with scikit-learn: 1,797 images of 8 x 8 pixels.

References:
    Kaynak, "Methods of combining multiple classifiers and their applications to handwritten digit
    recognition", 1995; UCI ML repository, test set of optdigits.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from isthmus.data.images import Images, Part


def digits(part: Part) -> Images:
    """Return 1,437 training or 360 test images, (N, 1, 8, 8), every class in equal share.

    The 17 grey levels are spread over 0..255. The division is fixed: no seed moves it.
    """
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    x_train, x_test, y_train, y_test = train_test_split(
        images, data.target.astype(np.int64), test_size=360, random_state=0, stratify=data.target
    )
    x, y = (x_train, y_train) if part == "train" else (x_test, y_test)
    return Images(x=x, y=y, num_classes=10)
