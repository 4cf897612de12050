"""`torchgpt` whose second process kills itself after a step of a training, if torchrun has not started it again yet.

    torchrun --max-restarts 1 -m parity_tests.dying_process STEP train ...
"""

import os
import signal
import sys

from numpygpt.training.run import TrainingRun
from torchgpt.commands.main import main
from torchgpt.commands.train import RESTARTS


def die_after(last):
    train_step = TrainingRun.train_step

    def mortal(run):
        if run.step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(run)

    TrainingRun.train_step = mortal


if __name__ == "__main__":
    if (os.environ["RANK"], os.environ[RESTARTS]) == ("1", "0"):
        die_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
