"""Moving what runs to better places, a bounded share of it at a time. Nobody calls it without being asked to.

repack ─► terrain (who may go where: arrays and rules)
       ─► vacate  (strategy binpack: empty as many nodes as the moves allow)
       ─► level   (strategy spread: take load from the fullest nodes to the emptiest)
"""

from mesh.scheduler.repack.plan import SHARE, Move, repack

__all__ = ["SHARE", "Move", "repack"]
