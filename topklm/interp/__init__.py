"""What neurons stand for: measures of a model's active neurons on a sample of text. Pure functions, and the pass over
the text that feeds them."""

from .activity import SiteActivity, observe
from .effective_rank import SecondMoments, effective_rank
from .overlap import chance_overlap, jaccard
from .sample import TokenSample, validation_sample
from .token_entropy import draw_order, token_entropy
from .topic_information import TopicInformation, mutual_information, topic_information

__all__ = [
    "SecondMoments",
    "SiteActivity",
    "TokenSample",
    "TopicInformation",
    "chance_overlap",
    "draw_order",
    "effective_rank",
    "jaccard",
    "mutual_information",
    "observe",
    "token_entropy",
    "topic_information",
    "validation_sample",
]
