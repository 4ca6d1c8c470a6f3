"""Every tolerance of the tests, with its reason. Anything above 1e-3 would be a bug."""

# Parity with the PyTorch references: largest error over the array's largest magnitude. Both
# sides compute in float32 and sum in another order; the references differ from themselves in
# float64 by about 1e-6 per array.
PARITY_FORWARD = 1e-5
# Gradients of any case: a bias that reaches the loss through sums that nearly cancel has few
# digits left. The cases of the tests are held to PARITY_FORWARD.
PARITY_GRADIENT = 1e-4
# A case says how far the reference in float32 is from itself in float64, array by array. Where
# that alone is more than a fraction of the tolerance (gradients that are small sums of large
# terms: a bias that a softmax all but cancels), another order of summation is as far off again:
# this many times that figure is allowed. In all cases here it decides about no array.
PARITY_ROUNDING = 4

# Augmentation, in units of the pixel range 0..1.
# Operations against torchvision in float64: float32 rounding of up to seven operations.
AUGMENT_FLOAT = 1e-5
# Against 8-bit PIL, which the study ran. Crop and resize: rounded after rows and after columns.
AUGMENT_8_BIT_CROP = 1 / 255
# With colour jitter, mean over an image: PIL cuts fractions off after each operation and turns
# hues in 8-bit HSV. torchvision on PIL differs as much from torchvision on float tensors
# (measured on 40 images: mean 1.6/255, at most 2.6/255).
AUGMENT_8_BIT_JITTER = 3 / 255
# A grey image against the same as three equal channels: torchvision's grey weights add up to
# 0.9999, which contrast and saturation multiply by their strength.
AUGMENT_GREY = 5e-5

# Interpolation matrices against PyTorch, both in float64: rounding of one short sum.
RESIZE_FLOAT64 = 1e-11

# The same float32 function compiled twice, in another order of operations.
SAME_FLOAT32 = 1e-6

# Layer norm of unit spread around 300: float32 has steps of 3e-5 there.
FAR_FROM_ZERO = 1e-4

# bfloat16 keeps 8 bits: 2^-8 = 0.004 per operation. Relative to the largest feature of a
# three-block network, whose activations are rounded about ten times in a row. A statement
# about the type, not about our arithmetic: the one tolerance that may be above 1e-3.
BFLOAT16 = 3e-2

# Attention of bfloat16 inputs, and its gradients, against float32 on the same inputs: weights, sums
# and results are each rounded to 8 bits.
BFLOAT16_PRODUCTS = 1e-2

# A product of bfloat16 summed in float32 and rounded to bfloat16 once: half a step of 2^-7 at the
# largest entry, and as much again for the sum's own order.
BFLOAT16_ROUNDING = 2**-7

# Metrics against scikit-learn and the study's own figures, all in float64: rounding of sums.
METRIC = 1e-12

# DICOM, in grey levels of 255. The same colours after lossy compression by other programs: their
# quantisation, at most 6 in the files that come with pydicom. Another program's conversion from
# YCbCr to RGB rounds elsewhere.
DICOM_LOSSY_LEVELS = 6
COLOUR_SPACE_LEVELS = 1

# CKA from float32 kernel matrices of centred features, against float64 throughout: rounding of
# their sums.
CKA = 1e-6
# The same where the features themselves are computed twice, in another order of summation and
# on another number of devices.
CKA_OF_NETWORKS = 1e-5

# Probabilities of logistic regression against scikit-learn, which is converged in float64. Ours
# stops at a gradient of 1e-6 in float32; at C = 100 the objective is that flat (measured 1.4e-4).
LOGISTIC = 5e-4

# Relative: training losses of the first few steps on eight devices against one. Gradients are
# summed in another order, and every step begins where the one before it ended.
LOSS_ON_DEVICES = 1e-5

# Losses of six steps of a small network, half of them on another CPU or compiled otherwise: float32
# sums in another order, carried along by Adam.
ACROSS_CPUS = 1e-3
