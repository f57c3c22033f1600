"""What the programs of the workflow share, one module a subject."""

import os

# For every library that is imported after this: no usage pings, and no progress bars, which would fill the logs.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TQDM_DISABLE": "1"}
