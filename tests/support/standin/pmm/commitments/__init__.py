from .tracker import CommitmentTracker

__all__ = ["CommitmentTracker"]
