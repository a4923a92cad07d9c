"""What all tests need."""

import signal

# A shell starts what runs in the background with SIGINT ignored, and all that the tests start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
