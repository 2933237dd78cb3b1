"""The second version of the embedded world, `shapes-2`: relations, counts to five, textures, occlusion, negation.

scenes.py      draws scene graphs; some combinations of attributes are held out for a compositional split
render.py      turns a scene graph into pixels
relations.py   where objects are to one another
nouns.py       names of objects, and which objects a name fits
captions.py    captions of the web and of annotators
questions.py   questions with their true answers; judges what a model says
choices.py     one right caption of an image among wrong ones
"""
