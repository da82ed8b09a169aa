"""Pages to read in a browser, to send and to keep: one file each, without scripts and without anything fetched.

Pure: values in, HTML out. `status` shows what runs now, `cost` where the GPU time went.
"""

from heliostat.pages.cost import cost_page
from heliostat.pages.status import StatusView, status_page

__all__ = ["status_page", "cost_page", "StatusView"]
