"""D-Bus: the hardened connection, the dispatcher driven by the interface files, authorisation, and the client."""
