"""Speed, memory and tightness as ratios inside one run; `make bench`."""

from tfrobust.commands import import_tensorflow

import_tensorflow()
