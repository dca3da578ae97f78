"""From arguments to a launch: what is known of them, specialisation, program, cubin; and what is remembered of
calls.
"""
