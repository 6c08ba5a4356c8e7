"""A classifier's logits as the response says them."""

import math
from collections.abc import Sequence

from graftwork.v1 import generation_service_pb2 as pb

Classification = pb.ScoreResponse.Classification


def classification_to_proto(labels: Sequence[str], logits: Sequence[float]) -> Classification:
    """Logits in the order of labels; a single one is a reward too."""
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    total = sum(weights)
    message = pb.ScoreResponse.Classification(
        classes=[
            pb.ScoreResponse.ClassScore(label=label, logit=logit, probability=weight / total)
            for label, logit, weight in zip(labels, logits, weights, strict=True)
        ]
    )
    if len(logits) == 1:
        message.reward = logits[0]
    return message
