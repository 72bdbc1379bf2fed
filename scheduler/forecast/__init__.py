"""The end state, once all that is decided has been carried out; and what if nodes were lost or services grew."""
