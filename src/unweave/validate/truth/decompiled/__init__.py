"""Networks whose structure is known, decompiled: is what comes out what is there?"""
