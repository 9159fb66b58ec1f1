"""From a policy to a robot: the policy server, its client, and the control loop.

`RemotePolicy` is the robot's side of `gpc serve`. It needs numpy, msgpack and websockets; nothing here loads torch unasked.
"""
