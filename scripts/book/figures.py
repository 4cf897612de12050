"""The figures of "Build a Large Language Model (From Scratch)", chapters 4 and 5, as the book prints them.

The training log is that of ch05/01_main-chapter-code/ch05.ipynb in rasbt/LLMs-from-scratch at commit 016d230e, run on a
CPU; later versions of the notebook were run on other machines.
"""

PARAMETERS = "163,009,536"
PARAMETERS_TIED = "124,412,160"
MEGABYTES = "621.83"
CHAPTER_4_TEXT = "Hello, I am Featureiman Byeswickattribute argue"

CHARACTERS = "20479"
TOKENS = "5145"
BATCHES_IN_AN_EPOCH = 9
TRAINING_BATCHES = f"{BATCHES_IN_AN_EPOCH} x (2, 256)"
VALIDATION_BATCHES = "1 x (2, 256)"

START = "Every effort moves you"
UNTRAINED_TEXT = f"{START} rentingetic wasnم refres RexMeCHicular stren"
INPUTS = [[16833, 3626, 6100], [40, 1107, 588]]  # "every effort moves", "I really like"
TARGETS = [[3626, 6100, 345], [1107, 588, 11311]]  # " effort moves you", " really like chocolate"
LIKELIEST_TOKENS = "[[16657, 339, 42826], [49906, 29669, 41751]]"
TARGET_PROBABILITIES = "7.4541e-05 3.1061e-05 1.1563e-05 1.0337e-05 5.6776e-05 4.7559e-06"
CROSS_ENTROPY = "10.7940"
PERPLEXITY = 48725.8203
UNTRAINED_TRAINING_LOSS = 10.98758347829183
UNTRAINED_VALIDATION_LOSS = 10.98110580444336

LOSS_LINES = (
    "Ep 1 (Step 000000): Train loss 9.781, Val loss 9.933",
    "Ep 1 (Step 000005): Train loss 8.111, Val loss 8.339",
    "Ep 2 (Step 000010): Train loss 6.661, Val loss 7.048",
    "Ep 2 (Step 000015): Train loss 5.961, Val loss 6.616",
    "Ep 3 (Step 000020): Train loss 5.726, Val loss 6.600",
    "Ep 3 (Step 000025): Train loss 5.201, Val loss 6.348",
    "Ep 4 (Step 000030): Train loss 4.417, Val loss 6.278",
    "Ep 4 (Step 000035): Train loss 4.069, Val loss 6.226",
    "Ep 5 (Step 000040): Train loss 3.732, Val loss 6.160",
    "Ep 6 (Step 000045): Train loss 2.850, Val loss 6.179",
    "Ep 6 (Step 000050): Train loss 2.427, Val loss 6.141",
    "Ep 7 (Step 000055): Train loss 2.104, Val loss 6.134",
    "Ep 7 (Step 000060): Train loss 1.882, Val loss 6.233",
    "Ep 8 (Step 000065): Train loss 1.320, Val loss 6.238",
    "Ep 8 (Step 000070): Train loss 0.985, Val loss 6.242",
    "Ep 9 (Step 000075): Train loss 0.717, Val loss 6.293",
    "Ep 9 (Step 000080): Train loss 0.541, Val loss 6.393",
    "Ep 10 (Step 000085): Train loss 0.391, Val loss 6.452",
)

#: After each epoch, START and this; line ends became spaces.
SAMPLES = (
    ",,,,,,,,,,,,.                                     ",
    ", and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and, and,,"
    " and, and,",
    ", and I had been.                                            ",
    ' know the                          "I he had the donkey and I had the and I had the donkey and down the room,'
    " I had",
    " know it was not that the picture--I had the fact by the last I had been--his, and in the            "
    '"Oh, and he said, and down the room, and in',
    ' know," was one of the picture. The--I had a little of a little: "Yes, and in fact, and in the picture was, and I'
    " had been at my elbow and as his pictures, and down the room, I had",
    ' know," was one of the picture for nothing--I told Mrs.  "I was no--as! The women had been, in the moment--as Jack'
    " himself, as once one had been the donkey, and were, and in his",
    ' know," was one of the axioms he had been the tips of a self-confident moustache, I felt to see a smile behind his'
    ' close grayish beard--as if he had the donkey. "strongest," as his',
    '?"  "Yes--quite insensible to the irony. She wanted him vindicated--and by me!"  He laughed again, and threw back'
    ' the window-curtains, I had the donkey. "There were days when I',
    ' know," was one of the axioms he laid down across the Sevres and silver of an exquisitely appointed'
    " luncheon-table, when, on a later day, I had again run over from Monte Carlo; and Mrs. Gis",
)
EPOCHS = len(SAMPLES)

TRAINED_GREEDY_TEXT = (
    f'{START} know," was one of the axioms he laid down across the Sevres and silver of an exquisitely appointed lun'
)
TRAINED_SAMPLED_TEXT = f"{START} stand to work on surprise, a one of us had gone with random-"

WORDS = ("closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you")
WORD_LOGITS = [4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]
LIKELIEST_WORD = "3 forward"
DRAWN_WORDS = "73 closer, 582 forward, 2 inches, 343 toward"
PIZZA_AT_TEMPERATURE_5 = "4 %"
TOP_3_PROBABILITIES = "closer 0.0615, forward 0.5775, toward 0.3610"
TEMPERATURES = (1, 0.1, 5)
