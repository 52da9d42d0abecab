"""tf.data's share of benchmarks/loader.py: decode_and_crop_jpeg and a bicubic resize to 224.

    python loader_tensorflow.py FOLDER IMAGES

prints the images per second of processor time, on one thread. Needs TensorFlow and nothing else.
"""

import os
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf


def crop(encoded):
    """A random resized crop as EfficientNet's TPU code makes it: decodes the crop alone."""
    shape = tf.image.extract_jpeg_shape(encoded)
    start, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros([1, 0, 4]),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([start[:2], size[:2]], axis=0)
    image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(image[None], (224, 224), method="bicubic")[0]
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def main(folder, images):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    paths = sorted(Path(folder).glob("*/*.jpg"))
    files = [paths[number % len(paths)].read_bytes() for number in range(images)]
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = tf.data.Dataset.from_tensor_slices(files).map(crop).with_options(options)
    for _ in range(2):  # the first time warms up
        start = time.process_time()
        for _ in dataset:
            pass
        rate = images / (time.process_time() - start)
    print(rate)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
