"""The page of `pmm-shm web`: an agent's mind in a browser, now and as of any event. It only reads."""
