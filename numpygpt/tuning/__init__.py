"""Tuning: what a trained model is trained for next, and the runs of `numpygpt finetune`.

A goal puts together a model, an objective and a kind of batch (`numpygpt.training.goal`). Its gradient is made of
hand-written backwards alone: that of the objective, then that of the model.

    answers        the answers of a conversation, and not its prompts
    classes        the class of a text, by its last token
    rewards        the better of two answers has the higher score
    preferences    the better of two answers becomes likelier: DPO
    distillation   the distribution of a teacher
    policies       answers that were drawn become likelier if their rewards are high: REINFORCE, GRPO, PPO
    rollouts       answers that are drawn and judged; the best of several, for rejection sampling
"""
